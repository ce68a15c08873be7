import re


def test_attribute_asks_color_and_shape_of_the_only_object(items):
    for item in items("attribute"):
        (thing,) = item.scene.objects
        assert [question.answer for question in item.questions] == [thing.color, thing.shape]
        for question in item.questions:
            assert question.text.split("\n")[2:] == list(question.options)
            assert question.options.count(question.answer) == 1
            assert 20 <= thing.diameter <= 33


def test_attribute_many_names_exactly_one_object(items):
    for item in items("attribute_many"):
        color, shape = item.questions
        asked = re.search(r"What color is the (\w+)\?", color.text).group(1)
        assert [thing.color for thing in item.scene.objects if thing.shape == asked] == [color.answer]
        asked = re.search(r"What shape is the (\w+) object\?", shape.text).group(1)
        assert [thing.shape for thing in item.scene.objects if thing.color == asked] == [shape.answer]
        present = {thing.color for thing in item.scene.objects}
        assert present <= set(color.options)


def test_captions_name_the_object_with_the_right_article(items):
    answers = set()
    for item in items("captions", 48):
        (thing,) = item.scene.objects
        article = "an" if thing.color == "orange" else "a"
        assert item.questions[0].answer == f"{article} {thing.phrase}"
        answers.add(item.questions[0].answer)
    assert len(answers) == 48


def test_placed_captions_say_where_the_object_is(items):
    for item in items("captions_placed", 288):
        (thing,) = item.scene.objects
        place = re.fullmatch(rf"an? {thing.phrase} at the (.+)", item.questions[0].answer).group(1)
        left, top, right, bottom = thing.box(0.0, item.scene.size)
        assert 0 <= left < right <= item.scene.size
        assert 0 <= top < bottom <= item.scene.size
        across, down = (left + right) / 2 / item.scene.size, (top + bottom) / 2 / item.scene.size
        row = "top" if down < 0.5 else "bottom"
        column = " left" if across < 0.39 else " right" if across > 0.61 else ""
        assert place == row + column


def test_256_held_out_images_have_distinct_captions(items):
    assert len({item.questions[0].answer for item in items("captions_placed", 256, "heldout")}) == 256
