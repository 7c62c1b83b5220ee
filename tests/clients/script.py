# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

"""A client: runs the Python script on stdin with what is defined here.

Tests use it through client () of common.bash.
"""

import errno
import faulthandler
import linecache
import os
import signal
import sys
import threading
import time

import nbd

SECONDS = 240                   # Then the script fails, and says where.

sock = os.environ["sock"]
log = os.environ["log"]


class Unexpected(Exception):
    pass


# Connections ################################################################

def conn(export=None):
    """Connect."""
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.set_strict_mode(0)
    if export is not None:
        h.set_export_name(export)
    h.connect_unix(sock)
    return h


def refused(export=None):
    """The server does not let a client connect."""
    try:
        conn(export)
    except nbd.Error:
        return
    raise Unexpected("the connection was not refused")


def close(h, number):
    """Disconnect, and wait until the plugin's handle is closed."""
    h.shutdown()
    wait_log("%d close" % number)


def cut(number):
    """The same for a client that has written "cut" at 0 and is killed."""
    pid = os.fork()
    if pid == 0:
        h = conn()
        h.pwrite(b"cut", 0)
        os.kill(os.getpid(), signal.SIGKILL)
    expect(os.waitpid(pid, 0)[1], signal.SIGKILL)
    wait_log("%d close" % number)


def finish(h, cookie):
    """Wait for one of a connection's requests; others may be held up."""
    while not h.aio_command_completed(cookie):
        h.poll(-1)


def held(h, cookie):
    """The request has no reply yet, and will have none before something
    happens that has not been asked for yet."""
    settle()
    while h.poll(0) > 0:
        pass
    return not h.aio_command_completed(cookie)


def call(fn, *args):
    """A call on its own thread, such as a request, which has the connection
    to itself until it ends; finish is another way.  Returns a Future."""
    from concurrent.futures import ThreadPoolExecutor   # Seldom needed.
    return ThreadPoolExecutor(1).submit(fn, *args)


# What is expected ###########################################################

def brief(value):
    text = repr(value)
    if len(text) > 500:
        text = "%s... (%d characters)" % (text[:500], len(text))
    return text


def expect(got, wanted):
    if got != wanted:
        raise Unexpected("got %s, expected %s" % (brief(got), brief(wanted)))


def all_see(h):
    """What any of four connections writes and the next one flushes all see,
    whatever they had cached.  Block 0 is zeroes then."""
    for i in range(8):
        for c in h:
            c.pread(4096, 0)
        new = bytes([65 + i]) * 4096
        h[i % 4].pwrite(new, 0)
        h[(i + 1) % 4].flush()
        expect([bytes(c.pread(4096, 0)) for c in h], [new] * 4)
    if h[0].can_zero():
        h[0].zero(4096, 0)
    else:
        h[0].pwrite(bytes(4096), 0)
    h[1].flush()
    expect([bytes(c.pread(4096, 0)) for c in h], [bytes(4096)] * 4)


def fails(err, fn, *args):
    """The request fails with this errno."""
    try:
        fn(*args)
    except nbd.Error as e:
        if e.errnum != err:
            raise Unexpected("failed with %s, expected %s" %
                             (e, errno.errorcode[err]))
    else:
        raise Unexpected("did not fail")


def wait_for(what, test):
    for i in range(60000):
        if test():
            return
        time.sleep(0.002)
    raise Unexpected("still waiting for " + what)


# The server and its plugin ##################################################

def wait_beside(what, test, *connections):
    """The same, and meanwhile each connection has requests under way at the
    same time: so more handles are opened, whatever the plugin is."""
    def ask():
        for h in connections:
            for cookie in [h.aio_pread(nbd.Buffer(512), i * 4096)
                           for i in range(8)]:
                finish(h, cookie)
        return test()
    wait_for(what, ask)


def logged(line):
    """How often the line is in the plugin's log."""
    with open(log) as f:
        return f.read().split("\n").count(line)


def wait_log(line, times=1):
    wait_for('"%s" in the plugin\'s log' % line,
             lambda: logged(line) >= times)
    # More of them mean that it did not wait for the one that was meant.
    expect(logged(line), times)


def flushes():
    """The handles that the plugin was told to flush, in order."""
    with open(log) as f:
        return [l.split()[0] for l in f if l.endswith(" flush\n")]


def count_flushes():
    """How many of those a client's four flushes are; the first one finds
    nothing to write back."""
    h = [conn() for i in range(4)]
    h[3].flush()
    h[0].pread(512, 0)
    h[1].zero(512, 0)
    h[3].flush()
    h[2].zero(512, 0)
    h[0].pread(512, 0)
    h[3].flush()
    h[3].flush()
    return len(flushes())


def control(*lines):
    """Replace the plugin's control file."""
    path = os.environ["control"]
    with open(path + ".new", "w") as f:
        f.write("".join(l + "\n" for l in lines))
    os.rename(path + ".new", path)


def threads(pid):
    """For each of the process's threads: its state, and how often it has
    stopped running."""
    seen = {}
    for tid in os.listdir("/proc/%d/task" % pid):
        try:
            with open("/proc/%d/task/%s/status" % (pid, tid)) as f:
                fields = dict(l.split(":", 1) for l in f)
        except (FileNotFoundError, ProcessLookupError):
            continue
        seen[int(tid)] = (fields["State"].split()[0],
                          int(fields["voluntary_ctxt_switches"]) +
                          int(fields["nonvoluntary_ctxt_switches"]))
    return seen


def settle():
    """Wait until server and client have done all that they can do: every
    thread but this one sleeps, and none has run since the last look.  So
    they did all sleep at one moment, and what sleeps can only be woken from
    outside: by this thread, or by the time that a plugin's delay or the
    clock of the statistics takes."""
    server = int(os.environ["server_pid"])
    last = None

    def asleep():
        nonlocal last
        before = last
        ours = threads(os.getpid())
        del ours[threading.get_native_id()]
        last = threads(server), ours
        return last == before and all(
            state == "S" for part in last for state, _ in part.values())

    wait_for("the server to settle", asleep)


def tick():
    """Wait until the clock of the statistics has gone off once more; nothing
    else may go on in the server."""
    def stops():
        return sum(n for _, n in threads(int(os.environ["server_pid"])).values())

    settle()
    before = stops()
    wait_for("the statistics' clock", lambda: stops() > before)
    settle()


# The script #################################################################

def fail(kind, error, trace, thread=None):
    """For an exception on any thread: others may never end."""
    import traceback            # Takes a while, and is seldom needed.
    traceback.print_exception(kind, error, trace)
    sys.stdout.flush()
    os._exit(1)


if __name__ == "__main__":
    script = sys.stdin.read()
    # So that a traceback has its lines.
    linecache.cache["<script>"] = (len(script), None,
                                   script.splitlines(True), "<script>")
    sys.excepthook, threading.excepthook = fail, lambda args: fail(*args)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    exec(compile(script, "<script>", "exec"),
         {k: v for k, v in globals().items() if k != "__name__"})
