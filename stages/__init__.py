"""The three stages and the tools around them: what each reads, does and writes, callable from Python."""
