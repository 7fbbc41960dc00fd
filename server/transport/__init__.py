"""The gRPC transport. The only part of the server that knows the protocol's messages.

    service            the calls of the protocol
    messages           converts between protobuf messages and plain values
    sending            the messages of a pull
    pages              pagination of answers about many models
    access             tokens: who may call which method for which model
    audit              notes administrative calls
    gate, permits      admission control and concurrency limits
    read_ahead         asks for a call's next message while the last one is processed
    executor           the threads of calls
    requests           parses messages within the memory budget
    watch, in_flight   ends stalled calls; counts calls in flight
    health, reflection the standard services
    listen             the sockets to listen on
    tls                the certificate, its key and the CA of clients
    descriptors        the limit on connections
    local              the Unix socket for workers of this user on this machine
    local_connection, local_context, local_memory
                       one connection; what a call of it offers the service; memory that workers share

May import `server.runtime` and what stands below it, and grpc.
"""
