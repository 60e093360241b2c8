"""Recordings of decisions and episodes as MCAP files: messages, writer process, reader, replay."""
