@load ./framework
@load ./table
@load ./attribution
