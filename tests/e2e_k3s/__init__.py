"""The scenarios of the rehearsal on a true cluster: opt-in, in a namespace of its own, never on an ambient default.

    E2E_K3S_CONTEXT=k3d-test python -m pytest -m e2e_k3s

`gate` says what has to be there, in order; each thing that is missing skips with its remedy. `E2E_K3S_REQUIRED=1` turns
every skip into a failure, for a pipeline that has to have a cluster.
"""
