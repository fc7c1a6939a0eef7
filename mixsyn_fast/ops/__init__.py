"""The ops: one file each, with formula, reference, registration, gradient and the public function.

A file says in ``__all__`` what it makes public; its line here makes that public in :mod:`mixsyn_fast` and its op known to
``mixsyn-fast doctor``, the benchmarks and the tests (:func:`mixsyn_fast.backend.registered_ops`).
"""

from .bias_act import *
from .channel_attention_spread import *
from .label_patterns import *
from .latent_blend import *
from .masked_roi_pool import *
from .region_norm import *
from .spatial_attention_pool import *
