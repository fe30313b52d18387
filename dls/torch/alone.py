"""One process with the dense method: its own gradient is the mean, so nothing is copied."""

from __future__ import annotations

from dls.exchange.exchanger import Row
from dls.torch.parameters import Tensor, Tracked
from dls.torch.steps import Steps
from reference.ops import NonFiniteError


class Alone(Steps):
    """Steps in which every `grad` stays as it is; only NaN and infinity are looked for."""

    def fired(self, number: int) -> None:
        """Nothing leaves."""

    def leave_all(self) -> None:
        """See Steps; also a parameter without a gradient has one of zeros afterwards."""
        self.begin()
        for each in self.parameters:
            if each.tensor.grad is None and not each.frozen:
                each.piece.zero_()
                each.write()

    def begin(self) -> None:
        """Begin a step, which costs nothing."""
        self._check()
        self.enter("backward")

    def end(self, record: bool = False) -> Row:
        """The step is over. NonFiniteError, unless such steps are left out."""
        odd = [each for each in self.parameters if not _is_finite(each)]
        if odd and not self._skips:
            raise NonFiniteError(f"NaN or infinity in the gradient of layer {odd[0].layer}")
        self.enter("")
        clock, method = self.exchanger.clock, self.exchanger.method
        clock.stop()
        row = Row(0, 0, clock.seconds, [0] if odd else [], started=clock.started)
        if record:
            row.columns = method.describe_selection() | method.describe_memory()
        self.finished += 1
        return row

    def hand_over(self) -> None:
        """Every `grad` is right; a frozen parameter has none."""
        for each in self.parameters:
            if each.frozen:
                each.tensor.grad = None


def _is_finite(each: Tracked) -> bool:
    """Whether a gradient holds neither NaN nor infinity; where its sum overflows, each is asked."""
    gradient: Tensor = each.tensor.grad
    if gradient is None or each.frozen:
        return True
    values = gradient.detach()
    values = values.coalesce().values() if values.is_sparse else values
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
