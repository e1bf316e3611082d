import json

from tl_cli.tracking.facts import RunFacts


def test_facts_are_plain_json_with_both_numbers_of_epochs() -> None:
    facts = RunFacts(
        run_id="0123456789abcdef", name="r", experiment="tl", status="finished", kind="training", parent_id=None,
        started=1.5, seconds=2.0, last_seen=3.5, host="h", model="m", data="d", epochs=3, epochs_wanted=5, val_accuracy=0.5,
        best_epoch=2, test_accuracy=None, val_digest="x", curve=(0.25, 0.5),
    )  # fmt: skip
    data = json.loads(json.dumps(facts.to_dict()))
    assert (data["epochs"], data["epochs_wanted"], data["curve"]) == (3, 5, [0.25, 0.5])
    assert (data["test_accuracy"], data["is_best"], data["phase_ends"]) == (None, False, [])
    assert facts.short_id == "01234567"
