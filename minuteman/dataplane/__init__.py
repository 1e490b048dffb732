"""The kernel's side: programs, maps, pins and links, and the operations that change them."""
