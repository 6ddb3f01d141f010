"""Results that display themselves in notebooks: the figure that `preview` in `figures.py` draws."""

import io
from importlib import import_module


class Displayed:
    """A result of a folder whose `figures.py` has `preview`; without arrays it is shown as text."""

    def _repr_png_(self) -> bytes | None:
        from cnnviz.core.output.style import style

        room = type(self).__module__.rpartition(".")[0]
        with style():
            figure = import_module(f"{room}.figures").preview(self)
            if figure is None:
                return None
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=figure.dpi / 2)
        return stream.getvalue()
