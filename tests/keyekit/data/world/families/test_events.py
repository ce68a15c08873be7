def test_order_answers_the_earlier_of_two_clearly_separate_events(items):
    for item in items("order"):
        earlier, later = sorted(item.scene.objects, key=lambda thing: thing.appears)
        assert later.appears - earlier.appears >= 1.0
        assert later.appears <= 4.0 - 1.0
        assert earlier.color != later.color
        assert earlier.shape != later.shape
        first, second = item.questions
        assert first.answer == second.answer == earlier.phrase
        assert first.options == second.options[::-1]
        assert first.text != second.text
        for question in item.questions:
            assert question.text.index(question.options[0]) < question.text.index(question.options[1])


def test_temporal_answers_the_visible_span(items):
    for item in items("temporal"):
        start, stop = (float(value) for value in item.questions[0].answer.split(" - "))
        target = next(thing for thing in item.scene.objects if thing.phrase == item.questions[0].subject)
        visible = [second for second in item.scene.seconds() if target.is_visible(second)]
        assert (visible[0], visible[-1] + 1 / 4.0) == (start, stop)
