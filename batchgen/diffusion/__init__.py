"""The door to torch, diffusers and transformers; importing the package itself loads none of them.

`host` is what a worker uses: it holds one model (`loading`), makes the tasks' pipelines from it (`pipelines`), encodes
prompts (`prompts`) and sets schedulers up (`schedulers`). Nothing here knows of Ray, manifests' files or outputs.
"""

import os

# Both libraries warn while they are imported, which no later call can undo.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
