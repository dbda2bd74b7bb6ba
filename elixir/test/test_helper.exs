# Tests of two nodes need this one to listen, and a node's name cannot change. What happens on a node
# that is not distributed is tested in BEAMs of their own.
Snex.Peer.listen()
ExUnit.start(capture_log: true, assert_receive_timeout: 5_000)
