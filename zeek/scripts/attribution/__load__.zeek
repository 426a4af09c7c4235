@load ./claims
@load ./owners
@load ./conn
@load ./notice
@load ./logins
