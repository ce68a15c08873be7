from keyekit.data.world.draw import Draw
from keyekit.data.world.families.needle import needle
from keyekit.data.world.stage import Stage


def test_the_needle_shows_for_a_second_of_any_clip_beside_an_object_that_stays():
    for seconds in (4.0, 16.0):
        stage = Stage(fps=2.0, seconds=seconds)
        for index in range(20):
            item = needle(Draw(0, "needle", "train", index), stage)
            target = next(thing for thing in item.scene.objects if thing.color == item.questions[0].answer)
            (other,) = (thing for thing in item.scene.objects if thing is not target)
            seen = [second for second in item.scene.seconds() if target.is_visible(second)]
            assert len(seen) == 2
            assert 1.0 <= seen[0] <= seconds - 1.0
            assert len([second for second in seen if second == int(second)]) == 1  # one frame a second shows it once
            assert all(other.is_visible(second) for second in item.scene.seconds())
            assert {target.color, other.color} < set(item.questions[0].options)
