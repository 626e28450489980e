"""Per-record clipping without per-record gradients: the book-keeping trick (Bu et al. 2023, arXiv 2210.00038).

A linear layer's gradient for record i is ``G_i^T A_i`` with A_i (T x d) what went in and G_i (T x p) the gradient of
what came out, T latent samples or positions per record. Its squared norm needs no d x p matrix,

    |G_i^T A_i|^2 = sum_{s,t} (A_i A_i^T)_{st} (G_i G_i^T)_{st},

and the clipped sum ``sum_i c_i G_i^T A_i`` is the one matrix product that training without privacy does anyway. So one
backward pass that only records (A, G) is enough. Opacus' hooks compute the same numbers the long way; they stay as
``performance.clipping=hooks``, and the tests hold the two together to 1e-5.

``terms`` knows norms and sums of recorded gradients, ``rules`` what a layer's gradient is made of, ``recorder`` puts
both on a module, ``optimizer`` clips, adds the noise and steps; ``compiled`` is a step up to its sum as one program.
``recurrent`` and ``attention`` are layers whose parameters are used inside, ``fallback`` is Opacus' own sampler for any
other. ``ghost`` is Opacus' two passes, ``sharded`` the same with a model in pieces; ``engine`` is the door for users of
Opacus.
"""
