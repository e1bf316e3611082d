from PIL import ImageFont

from tl_cli.ui.figures.fonts import LATIN, drawable, families, file_for


def test_letters_of_many_scripts_are_drawn_by_some_font_and_others_as_numbers() -> None:
    assert families("loss") == [LATIN]
    assert len(families("猫 ネコ 고양이")) == 2
    assert drawable("猫 ネコ 고양이 龙 $x$") == "猫 ネコ 고양이 龙 $x$"
    # A code point that no font has.
    assert drawable("a\U000e0fff") == r"a\ue0fff"
    assert file_for("loss") != file_for("猫")


def test_the_font_of_a_text_has_each_of_its_letters() -> None:
    font = ImageFont.truetype(file_for("猫犬"), 20)
    assert bytes(font.getmask("猫")) != bytes(font.getmask("犬")), "two equal boxes"
