"""Choosing under a budget: `objective="time"`, `objective="memory"` and `max_state_bytes`.

- `goal.py`: what was asked for.
- `effects.py`: what changes did on average on the recorded tasks (`effects.json`).
- `options.py`: the configurations a role group may get, with loss and memory.
- `step_time.py`: how long a step and its update take on this device.
- `allocation.py`: the best combination of options, for whole role groups or tensor by tensor.
- `verdict.py`: the choice.
- `curve.py`: the trade-off curve of loss, time and memory that it lies on.
"""
