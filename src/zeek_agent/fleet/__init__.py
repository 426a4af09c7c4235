"""One identity per agent: keys, roles and certificates of a fleet, enrolment, renewal and revocation.

Needs the packages of the extra `fleet`. Nothing here is imported by a running agent: what it needs of this runs in a
process of its own.
"""
