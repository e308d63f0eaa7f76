"""How many pixels are decoded at once, and whose."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import sleep

from serving import until

from service.decoder import PixelRoom


def test_no_more_pixels_are_let_in_than_there_is_room_for() -> None:
    room, inside = PixelRoom(10), Event()

    def enter() -> None:
        with room.take(6):
            inside.set()

    with ThreadPoolExecutor(1) as pool:
        with room.take(5):
            entered = pool.submit(enter)
            assert not inside.wait(0.05)
        entered.result(timeout=10)


def test_an_image_with_more_pixels_than_there_is_room_for_is_alone() -> None:
    room = PixelRoom(10)
    with room.take(1_000):
        pass
    with room.take(10):
        pass


def test_a_large_image_is_not_overtaken_by_small_ones() -> None:
    room, order = PixelRoom(10), list[str]()

    def enter(name: str, pixels: int) -> None:
        with room.take(pixels):
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        with room.take(5):
            large = pool.submit(enter, "large", 8)
            until(large.running)
            sleep(0.05)
            small = pool.submit(enter, "small", 1)
            until(small.running)
            sleep(0.05)
            assert not order
        for one in (large, small):
            one.result(timeout=10)
    assert order == ["large", "small"]
