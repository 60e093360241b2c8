"""What commands, the demo and other programs share; nothing here prints or ends the process."""
