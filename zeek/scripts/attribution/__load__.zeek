@load ./owners
@load ./claims
@load ./conn
@load ./notice
