def test_count_is_the_number_of_objects(items):
    assert all(int(item.questions[0].answer) == len(item.scene.objects) for item in items("count"))
