"""The link: one TCP connection from a gateway to a model replica that carries batches of rows and nothing else.

It stands beside Ray's handle, which stays for control and as the fallback, because a handle call costs about a
millisecond of processor time on each side and a call over the link less than a tenth (docs/decisions/0002).
"""
