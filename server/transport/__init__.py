"""The network's edge: gRPC. The only part of the server that knows the protocol's messages.

    service            the calls of the protocol
    messages           between the protocol's messages and plain values
    pages              answers about many models
    gate, permits      which calls are taken, and how many at a time
    requests           parsing messages within the memory budget
    watch, in_flight   ending calls that stall; counting those under way
    health, reflection the standard services
    listen             the sockets to serve on
    descriptors        how many connections there may be

May import `server.runtime` and what stands below it, and grpc.
"""
