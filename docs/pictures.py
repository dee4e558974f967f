"""Draw the pictures of ``lecture.md`` again: ``python docs/pictures.py``."""

from pathlib import Path

from rich.console import Console

from autotune.show import draw_layer
from tconv import ConvGeometry, svg
from tconv.models import gallery
from tconv.target import TARGETS

FOLDER = Path(__file__).parent / "pictures"

if __name__ == "__main__":
    layer = ConvGeometry.from_lecture("3x32x32", filters=10, extent=5, padding=2, batch=64)
    draw_layer(layer, "float16", TARGETS["sm_90"], FOLDER / "layer.svg")
    house = gallery.filter_grid(gallery.read_picture(gallery.PICTURE), 9.0)
    svg.save(house, FOLDER / "gallery.svg", "the lecture's filters on a picture")
    network = gallery.trained_lenet(None, 3, Console())
    maps = gallery.activation_grid(network, gallery.a_digit(), 9.0)
    svg.save(maps, FOLDER / "activations.svg", "activation maps of LeNet-5")
