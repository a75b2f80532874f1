"""What watches a run after the switch: it detects faults on the device and answers step by step.

`detection` judges gradients and losses without waiting, `readout` brings verdicts to the host,
`snapshot` keeps a way back, `ladder` decides how far to go, `fallback` says which plan that means.
"""
