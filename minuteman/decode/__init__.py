"""Others' bytes become units. Pure: nothing here opens a file or a socket."""
