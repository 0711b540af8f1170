"""What a place holds and what goes: an account of it, and pruning.

A place is a prefix of results, ``OUT``, with a workspace. What refers to its objects are the manifests of
batches: their rows name images and videos, and with them the generator's versions of photographs; what is
written about them names indexes and relevance tables. What no manifest refers to is taken away where the next
run makes it again; rows, mappers, style codes and directions stay, as they are small or were slow to make.
"""

from __future__ import annotations
