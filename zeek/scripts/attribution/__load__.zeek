##! The process behind each connection.
