"""Labels of points. Oracle: geometry, rectangles that share no area."""

from itertools import combinations

from benchmarks.mark_labels import Box, places

AREA = Box(left=0, right=400, low=0, high=300)


def labels(points: list[tuple[float, float]], others: list[tuple[float, float]] | None = None) -> list[Box]:
    return places(points, [60.0] * len(points), 10.0, area=AREA, radius=4, others=others or [])


def dot(x: float, y: float) -> Box:
    return Box(left=x - 4, right=x + 4, low=y - 4, high=y + 4)


def assert_legible(boxes: list[Box], points: list[tuple[float, float]]) -> None:
    assert all(one.shared(other) == 0 for one, other in combinations(boxes, 2))
    assert all(box.shared(dot(*point)) == 0 for box in boxes for point in points)
    assert all(box.shared(AREA) == 600 for box in boxes)


def test_a_lone_point_has_its_label_above_on_the_right() -> None:
    (box,) = labels([(100, 100)])
    assert box.left > 104
    assert 100 <= box.low < box.high < 120


def test_near_points_have_labels_apart() -> None:
    points = [(100.0, 100.0), (130.0, 102.0), (135.0, 112.0), (101.0, 90.0)]
    assert_legible(labels(points), points)


def test_labels_stay_inside_at_every_corner() -> None:
    points = [(5.0, 5.0), (395.0, 5.0), (5.0, 295.0), (395.0, 295.0)]
    assert_legible(labels(points), points)


def test_a_point_without_label_is_not_covered() -> None:
    point, other = (100.0, 100.0), (130.0, 106.0)
    assert labels([point])[0].shared(dot(*other)) > 0  # else this shows nothing
    assert_legible(labels([point], [other]), [point, other])


def test_a_crowd_moves_labels_to_where_they_cover_least() -> None:
    crowd = [(200.0 + i % 3, 150.0 + i // 3) for i in range(9)]
    boxes = labels(crowd)
    assert len(boxes) == 9
    stacked = sum(one.shared(other) for one, other in combinations([labels([point])[0] for point in crowd], 2))
    assert sum(one.shared(other) for one, other in combinations(boxes, 2)) < stacked / 3
