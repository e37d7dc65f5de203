"""Flow Generator Matching: SIM with squared L2, on velocities.

Reference: FGM, arXiv:2410.19310, without its first term, as its authors train. Called from
simjax/train/step.py.
"""

from simjax.losses import distances, sim
from simjax.typing import Images, PerExample, typed


@typed
def generator_loss(x0: Images, d_teacher: Images, d_fake: Images, weight: PerExample) -> PerExample:
    """FGM's loss if generator.weight = "flow".

        L = 2 w < D_teacher - D_fake, D_fake - x0 >

    With w = ((1 + sigma) / sigma)^2 it equals 2 < v_teacher - v_fake, v_fake - (eps - x0) > in the
    velocities v = (z - D) (1 + sigma) / sigma of a flow at z = xt / (1 + sigma).

    Args:
      x0: generator output, data units.
      d_teacher, d_fake: D(xt; sigma) of each network, data units.
      weight: w(sigma), dimensionless.
    """
    return sim.generator_loss(x0, d_teacher, d_fake, weight, distance=distances.l2_squared)
