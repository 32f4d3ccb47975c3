#!/usr/bin/env python3
"""A relay that makes a TCP connection as slow, as far away and as unreliable as it is told to.

    relay.py HOST:PORT HOST:PORT [DELAY_S [BYTES_PER_S]]

Listens at the first address (port 0: any that is free; `listening PORT` tells), and passes every
connection on to the second one. Each way has a delay of its own, and a rate that all connections
share. Bytes are paced where they come in, as by a wire, so that no long queue builds up here.
Orders come by stdin, a line each, and each is answered by a line:

    delay S      from now on, each way
    rate BYTES   a second, each way; 0: as fast as it goes
    hole         nothing passes any more, not even that a connection ends
    mend         it passes again, and nothing was lost
    cut          every connection is ended, in the middle of whatever it was
    reset        every connection is reset
    count        nothing; the answer tells how many connections there are

It ends when stdin does. A connection is accepted at once: it is what is said on it that is late.
"""

import collections
import os
import select
import socket
import struct
import sys
import time

# How much one read takes, how much a way holds, and what the sockets may hold before that.
PIECE, HELD_MAX, SOCKET_BUFFER = 256 << 10, 64 << 20, 1 << 20
# How far ahead of its rate a way may run.
AHEAD_S = 0.002


class Wire:
    """One direction of all connections: its delay and its rate."""

    def __init__(self, delay, rate):
        self.delay, self.rate, self.free_at = delay, rate, 0.0

    def takes(self, now):
        return self.free_at <= now + AHEAD_S

    def due(self, count, now):
        if self.rate:
            self.free_at = max(self.free_at, now) + count / self.rate
        return max(self.free_at, now) + self.delay


class Way:
    """One direction of one connection."""

    def __init__(self, wire, source, sink):
        self.wire, self.source, self.sink = wire, source, sink
        self.queue, self.held = collections.deque(), 0
        # Its source has ended; and its sink has been told.
        self.ended = self.done = False

    def reads(self, now):
        return not self.ended and self.held < HELD_MAX and self.wire.takes(now)

    def read(self, now):
        try:
            piece = self.source.recv(PIECE)
        except BlockingIOError:
            return
        self.ended = not piece
        self.queue.append((self.wire.due(len(piece), now), memoryview(piece)))
        self.held += len(piece)

    def writes(self, now):
        return bool(self.queue) and self.queue[0][0] <= now

    def write(self):
        due, piece = self.queue.popleft()
        if not piece:
            self.done = True
            self.sink.shutdown(socket.SHUT_WR)
            return
        try:
            count = self.sink.send(piece)
        except BlockingIOError:
            count = 0
        self.held -= count
        if count < len(piece):
            self.queue.appendleft((due, piece[count:]))


class Relay:
    def __init__(self, at, to, delay, rate):
        self.to, self.open = to, True
        self.there, self.back = Wire(delay, rate), Wire(delay, rate)
        self.pairs = {}
        self.listener = socket.create_server(at, backlog=1024)
        self.listener.setblocking(False)

    def run(self):
        print("listening", self.listener.getsockname()[1], flush=True)
        while True:
            ready = self.wait()
            now = time.monotonic()
            if 0 in ready and not self.obey():
                return
            if self.listener.fileno() in ready:
                self.accept()
            for ways in list(self.pairs.values()):
                try:
                    self.move(ways, ready, now)
                except OSError:
                    # Whichever end is gone, the other one is to hear of it.
                    self.end(ways, reset=True)

    def wait(self):
        """Waits for anything to do: the descriptors that are ready, and why."""
        poll, now, until = select.poll(), time.monotonic(), None
        wanted = collections.Counter({0: select.POLLIN})
        if self.open:
            wanted[self.listener.fileno()] |= select.POLLIN
            for way in (way for ways in self.pairs.values() for way in ways):
                if way.reads(now):
                    wanted[way.source.fileno()] |= select.POLLIN
                elif not way.ended and way.held < HELD_MAX:
                    until = min(until or 1e9, way.wire.free_at - AHEAD_S)
                if way.writes(now):
                    wanted[way.sink.fileno()] |= select.POLLOUT
                elif way.queue:
                    until = min(until or 1e9, way.queue[0][0])
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        left = None if until is None else max(0, int((until - now) * 1000) + 1)
        return dict(poll.poll(left))

    def accept(self):
        near, _ = self.listener.accept()
        try:
            far = socket.create_connection(self.to, timeout=5)
        except OSError:
            return abort(near)
        for one in (near, far):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        self.pairs[near.fileno()] = (Way(self.there, near, far), Way(self.back, far, near))

    @staticmethod
    def events(ready, sock):
        return ready.get(sock.fileno(), 0)

    def move(self, ways, ready, now):
        for way in ways:
            hung_up = select.POLLHUP | select.POLLERR
            if way.reads(now) and self.events(ready, way.source) & (select.POLLIN | hung_up):
                way.read(now)
            if way.writes(now) and self.events(ready, way.sink) & (select.POLLOUT | hung_up):
                way.write()
        if all(way.done for way in ways):
            self.end(ways, reset=False)

    def end(self, ways, reset):
        del self.pairs[ways[0].source.fileno()]
        for way in ways:
            abort(way.source) if reset else way.source.close()

    def obey(self):
        line = os.read(0, 4096).decode()
        for order in line.splitlines():
            word, *numbers = order.split()
            count = len(self.pairs)
            if word == "delay":
                self.there.delay = self.back.delay = float(numbers[0])
            elif word == "rate":
                self.there.rate = self.back.rate = float(numbers[0])
            elif word in ("hole", "mend"):
                self.open = word == "mend"
            elif word in ("cut", "reset"):
                for ways in list(self.pairs.values()):
                    self.end(ways, reset=word == "reset")
            print(word, count, flush=True)
        return bool(line)


def abort(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def main():
    at, to, *numbers = sys.argv[1:]
    delay, rate = [*map(float, numbers), 0.0, 0.0][:2]
    Relay(address(at), address(to), delay, rate).run()


if __name__ == "__main__":
    main()
