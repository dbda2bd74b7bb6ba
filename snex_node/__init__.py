"""An Erlang node for asyncio."""
