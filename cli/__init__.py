"""The command line: parse, call one library function, write and print."""
