"""The program of a worker process: started by the agent, it compiles and runs one statement at a time."""
