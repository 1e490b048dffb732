"""Names of VIPs: how they are written in DNS, and which address is a name's home."""
