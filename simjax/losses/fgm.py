"""Flow Generator Matching: SIM with squared L2, on velocities. Arrays in, arrays out.

Reference: FGM, arXiv:2410.19310, without its first term, as it is run. Called from
simjax/train/step.py.
"""

from simjax.losses import distances, sim
from simjax.typing import Images, PerExample, typed


@typed
def generator_loss(x0: Images, d_teacher: Images, d_fake: Images, weight: PerExample) -> PerExample:
    """2 w < D_teacher - D_fake, D_fake - x0 >, which is FGM's with generator.weight = "flow".

    For w = ((1 + sigma) / sigma)^2 makes it 2 < v_teacher - v_fake, v_fake - (eps - x0) >, in
    velocities v = (z - D) (1 + sigma) / sigma of a flow at z = xt / (1 + sigma).

    Args:
      x0: generator output, data units.
      d_teacher, d_fake: D(xt; sigma) of each network, data units.
      weight: w(sigma), dimensionless.
    """
    return sim.generator_loss(x0, d_teacher, d_fake, weight, distance=distances.l2_squared)
