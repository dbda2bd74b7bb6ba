# Tests of two nodes need this one to listen, and a node's name cannot change. What happens on a node
# that is not distributed is tested in BEAMs of their own.
Snex.Peer.listen()

without =
  if System.get_env("SNEX_TEST_WITHOUT_UV") do
    IO.puts("SNEX_TEST_WITHOUT_UV is set: tests that need uv are excluded")
    [:uv]
  else
    []
  end

# Most of them wait for programs, or for time to pass; a time limit is for what hangs.
ExUnit.start(
  capture_log: true,
  timeout: 180_000,
  assert_receive_timeout: 5_000,
  exclude: without,
  max_cases: max(8, 2 * System.schedulers_online())
)
