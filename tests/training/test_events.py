from tl_cli.training.events import Event, Noticed, StepEnded, notify_all


def test_observers_receive_each_event_in_their_order() -> None:
    received: list[tuple[str, Event]] = []
    notify = notify_all(
        lambda event: received.append(("recorder", event)),
        lambda event: received.append(("saver", event)),
        lambda event: received.append(("screen", event)),
    )
    step, notice = StepEnded(1, 1, 8), Noticed("the disk is slow")
    notify(step)
    notify(notice)
    assert received == [(name, event) for event in (step, notice) for name in ("recorder", "saver", "screen")]
