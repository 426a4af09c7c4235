/* Makes real events and tells exactly what it made: one line each on standard output, written at once.
 *
 *   load exec COUNT PER_SECOND PROGRAM ARGUMENT...   runs a program COUNT times (0 per second: as fast as it goes)
 *                                                    and prints the pid of each; up to 4 at the same time
 *   load tcp ADDRESS PORT                            connects; prints pid, local port
 *   load udp ADDRESS PORT                            sends one datagram, not connected; prints pid, local port
 *   load udp-connected ADDRESS PORT                  the same, connected
 *   load fork-tcp ADDRESS PORT COUNT                 children connect without executing anything; prints as `tcp`
 *   load connections ADDRESS PORT COUNT PER_SECOND   connects and closes COUNT times, as one process; prints as `tcp`
 *   load flows ADDRESS PORT COUNT PER_SECOND         the same with datagrams, each from a socket of its own
 *   load tcp-exec ADDRESS PORT PROGRAM ARGUMENT...   connects, prints as `tcp`, then becomes another program
 *   load uring-accept                                listens at a port of 127.0.0.1, prints pid, port, and accepts one
 *                                                    connection by io_uring; exit code 3 where that may not be used
 *   load nothing                                     ends at once
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netdb.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PARALLEL 4 /* programs that `exec` lets run at a time */

extern char **environ;

static void fail(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void say(const char *line, int size)
{
	if (write(1, line, size) != size)
		fail("write");
}

static int open_socket(const char *address, const char *port, int type, int connected)
{
	struct addrinfo wanted = {.ai_socktype = type, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *found;
	struct sockaddr_storage local;
	socklen_t size = sizeof(local);
	char line[64];
	int fd;

	if (getaddrinfo(address, port, &wanted, &found))
		fail(address);
	fd = socket(found->ai_family, type, 0);
	if (fd < 0)
		fail("socket");
	if (connected && connect(fd, found->ai_addr, found->ai_addrlen))
		fail("connect");
	if (type == SOCK_DGRAM && sendto(fd, "x", 1, 0, connected ? NULL : found->ai_addr, connected ? 0 : found->ai_addrlen) != 1)
		fail("sendto");
	if (getsockname(fd, (struct sockaddr *)&local, &size))
		fail("getsockname");
	freeaddrinfo(found);
	/* sin_port and sin6_port are in the same place */
	say(line, snprintf(line, sizeof(line), "%d %d\n", getpid(), ntohs(((struct sockaddr_in *)&local)->sin_port)));
	return fd;
}

static void *map_ring(int ring, size_t size, off_t what)
{
	void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, what);
	if (place == MAP_FAILED)
		fail("mmap");
	return place;
}

static int accept_by_uring(void)
{
	struct sockaddr_in local = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct io_uring_params params = {0};
	socklen_t size = sizeof(local);
	char line[64], *submissions, *completions;
	struct io_uring_sqe *entry;
	struct io_uring_cqe *result;
	int server = socket(AF_INET, SOCK_STREAM, 0), ring = syscall(SYS_io_uring_setup, 1, &params);

	if (ring < 0)
		return 3;
	submissions = map_ring(ring, params.sq_off.array + params.sq_entries * sizeof(__u32), IORING_OFF_SQ_RING);
	completions = map_ring(ring, params.cq_off.cqes + params.cq_entries * sizeof(*result), IORING_OFF_CQ_RING);
	entry = map_ring(ring, params.sq_entries * sizeof(*entry), IORING_OFF_SQES);
	result = (struct io_uring_cqe *)(completions + params.cq_off.cqes);
	if (bind(server, (struct sockaddr *)&local, size) || listen(server, 1) ||
	    getsockname(server, (struct sockaddr *)&local, &size))
		fail("listen");
	say(line, snprintf(line, sizeof(line), "%d %d\n", getpid(), ntohs(local.sin_port)));
	entry->opcode = IORING_OP_ACCEPT;
	entry->fd = server;
	*(__u32 *)(submissions + params.sq_off.array) = 0;
	__atomic_store_n((__u32 *)(submissions + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1 || result->res < 0)
		fail("io_uring");
	return 0;
}

/* Waits until the next one is due; `next` is when the one before was. */
static void pace(struct timespec *next, double per_second)
{
	if (per_second <= 0)
		return;
	next->tv_nsec += 1e9 / per_second;
	while (next->tv_nsec >= 1000000000) {
		next->tv_nsec -= 1000000000;
		next->tv_sec++;
	}
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, next, NULL);
}

static void connect_often(const char *address, const char *port, int type, long count, double per_second)
{
	struct timespec next;

	clock_gettime(CLOCK_MONOTONIC, &next);
	for (long i = 0; i < count; i++) {
		pace(&next, per_second);
		close(open_socket(address, port, type, type == SOCK_STREAM));
	}
}

static void run(long count, double per_second, char **command)
{
	struct timespec next;
	char line[32];

	clock_gettime(CLOCK_MONOTONIC, &next);
	for (long i = 0; i < count; i++) {
		pid_t pid;
		pace(&next, per_second);
		if (i >= PARALLEL && wait(NULL) < 0)
			fail("wait");
		errno = posix_spawn(&pid, command[0], NULL, NULL, command, environ);
		if (errno)
			fail(command[0]);
		if (strcmp(command[1] ? command[1] : "", "tcp") && strncmp(command[1] ? command[1] : "", "udp", 3))
			say(line, snprintf(line, sizeof(line), "%d\n", pid));
	}
	while (wait(NULL) > 0)
		;
}

static void fork_and_connect(const char *address, const char *port, long count)
{
	for (long i = 0; i < count; i++) {
		pid_t pid = fork();
		if (pid < 0)
			fail("fork");
		if (pid == 0) {
			open_socket(address, port, SOCK_STREAM, 1);
			_exit(0);
		}
		if (waitpid(pid, NULL, 0) != pid)
			fail("waitpid");
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "nothing"))
		return 0;
	if (!strcmp(mode, "uring-accept"))
		return accept_by_uring();
	if (!strcmp(mode, "exec") && argc > 4)
		run(atol(argv[2]), atof(argv[3]), argv + 4);
	else if (!strcmp(mode, "tcp") && argc == 4)
		open_socket(argv[2], argv[3], SOCK_STREAM, 1);
	else if (!strcmp(mode, "udp") && argc == 4)
		open_socket(argv[2], argv[3], SOCK_DGRAM, 0);
	else if (!strcmp(mode, "udp-connected") && argc == 4)
		open_socket(argv[2], argv[3], SOCK_DGRAM, 1);
	else if (!strcmp(mode, "fork-tcp") && argc == 5)
		fork_and_connect(argv[2], argv[3], atol(argv[4]));
	else if (!strcmp(mode, "connections") && argc == 6)
		connect_often(argv[2], argv[3], SOCK_STREAM, atol(argv[4]), atof(argv[5]));
	else if (!strcmp(mode, "flows") && argc == 6)
		connect_often(argv[2], argv[3], SOCK_DGRAM, atol(argv[4]), atof(argv[5]));
	else if (!strcmp(mode, "tcp-exec") && argc > 4) {
		open_socket(argv[2], argv[3], SOCK_STREAM, 1);
		execv(argv[4], argv + 4);
		fail(argv[4]);
	} else {
		fprintf(stderr, "load: see the comment at the top of load.c\n");
		return 2;
	}
	return 0;
}
