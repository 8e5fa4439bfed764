"""Figures as tests look at them."""

import io

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def render(figure):
    """Draw the figure, see that it is a picture, and that no figure stays open."""
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    picture = plt.imread(io.BytesIO(file.getvalue()))
    assert picture[..., :3].std() > 0
    return figure


def titles_of(figure):
    return [ax.get_title() for ax in figure.axes]


def legend_of(figure):
    (legend,) = figure.legends
    return dict(zip((t.get_text() for t in legend.get_texts()), legend.get_lines(), strict=True))
