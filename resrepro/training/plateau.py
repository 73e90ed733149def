"""The rule 'divided by 10 when the error plateaus' (Section 3.4), which the paper does not spell out."""

from dataclasses import dataclass, field

from resrepro.spec.recipe import ImageNetRecipe


@dataclass
class Plateau:
    """Watches the validation error at each sample and says when the rate drops.

    The rate drops after `plateau_patience` samples in a row of which none was at least `plateau_gain`
    points better than the best since the drop before, as often as the recipe has fixed drops.
    """

    recipe: ImageNetRecipe
    drops: list[int] = field(default_factory=list)
    best: float = float("inf")
    waited: int = 0

    def see(self, iteration: int, top1_err: float) -> bool:
        """Take note of a sample; True if the rate drops from `iteration` on."""
        if top1_err <= self.best - self.recipe.plateau_gain:
            self.best, self.waited = top1_err, 0
            return False
        self.waited += 1
        if self.waited < self.recipe.plateau_patience or len(self.drops) >= len(self.recipe.lr_drops):
            return False
        self.drops.append(iteration)
        self.best, self.waited = top1_err, 0
        return True

    def state(self) -> list[float | list[int]]:
        """What a checkpoint keeps."""
        return [list(self.drops), self.best, self.waited]
