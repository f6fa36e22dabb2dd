"""A TCP proxy that can swallow: it acknowledges what it gets, and passes nothing on."""

import selectors
import socket
import threading


class Swallowing:
    """Passes connections to a port of loopback until it is told to swallow.

    `swallow()` lets those that are open fall silent, `swallow(new=True)` later ones as well.
    """

    def __init__(self, target_port):
        self.target_port = target_port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.old_are_silent = self.new_are_silent = False
        self._pairs = {}
        self._silent = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def swallow(self, *, new=False):
        self._silent |= set(self._pairs)
        self.new_are_silent = new

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join(5)
        for end in [self.listener, *self._pairs]:
            end.close()

    def _run(self):
        with selectors.DefaultSelector() as ready:
            ready.register(self.listener, selectors.EVENT_READ)
            while not self._ended.is_set():
                for key, _ in ready.select(0.05):
                    if key.fileobj is self.listener:
                        self._accept(ready)
                    else:
                        self._pass_on(ready, key.fileobj)

    def _accept(self, ready):
        client, _ = self.listener.accept()
        server = socket.create_connection(("127.0.0.1", self.target_port))
        for end, other in ((client, server), (server, client)):
            self._pairs[end] = other
            ready.register(end, selectors.EVENT_READ)
        if self.new_are_silent:
            self._silent |= {client, server}

    def _pass_on(self, ready, end):
        try:
            data = end.recv(65_536)
            if data and end not in self._silent:
                self._pairs[end].sendall(data)
        except OSError:
            data = b""
        if not data:
            for each in (end, self._pairs.pop(end, end)):
                self._pairs.pop(each, None)
                if each.fileno() >= 0:
                    ready.unregister(each)
                each.close()
