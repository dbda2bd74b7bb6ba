"""What several test files share: real peers, proxies and checks. Imported by tests only."""
