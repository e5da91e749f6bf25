# Compiles the guest program in advance, because this takes longer than most programs. The server puts GUEST in front of
# this file: the lines with which each program begins that calls functions (`faasrt.protocol.envelope`).

import binascii

GUEST_DEFINITIONS = compile(binascii.a2b_base64(GUEST.split('"')[-6]), "faasrt_guest.py", "exec", dont_inherit=True)


def without_guest(code):
    """Return a program without these lines. They are empty then, so that the other ones keep their numbers."""
    return "\n" * GUEST.count("\n") + code[len(GUEST) :] if code.startswith(GUEST) else code


def define_guest(namespace):
    exec(GUEST.partition("\n")[0], namespace)
    exec(GUEST_DEFINITIONS, namespace["_faasrt"])
