"""What the tests share: real data, real child processes, and the comparison of two runs bit for bit."""
