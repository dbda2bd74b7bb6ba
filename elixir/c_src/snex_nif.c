/*
 * Handles of environments, and memory that is shared with other processes.
 *
 * When the last reference to a handle is dropped, the process that was given as its collector gets
 * {snex_env_dropped, Binary}. A handle holds no environment of terms: 100,000 of them take 100,000
 * times some 100 bytes.
 *
 * A region is a memfd, as snex_runtime/regions.py has it, which says more. A view is what another
 * process has lent, mapped as a binary; its collector gets {snex_view_dropped, Binary}.
 */
#define _GNU_SOURCE
#include <erl_nif.h>
#include <string.h>

#ifdef __linux__
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef struct {
    ErlNifPid collector;
    int armed;
    size_t size;
    unsigned char data[];
} Handle;

static ErlNifResourceType *handle_type;

static void tell(ErlNifEnv *env, const char *what, ErlNifPid *to, const void *bytes, size_t size)
{
    ErlNifEnv *message = enif_alloc_env();
    ERL_NIF_TERM data;
    memcpy(enif_make_new_binary(message, size, &data), bytes, size);
    /* A collector that is gone needs no message: what it cares for has gone with it. */
    enif_send(env, to, message, enif_make_tuple2(message, enif_make_atom(message, what), data));
    enif_free_env(message);
}

static void dropped(ErlNifEnv *env, void *object)
{
    Handle *handle = object;
    if (handle->armed)
        tell(env, "snex_env_dropped", &handle->collector, handle->data, handle->size);
}

static ERL_NIF_TERM make(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
    ErlNifPid collector;
    ErlNifBinary data;
    (void)argc;
    if (!enif_get_local_pid(env, argv[0], &collector) || !enif_inspect_binary(env, argv[1], &data))
        return enif_make_badarg(env);
    Handle *handle = enif_alloc_resource(handle_type, sizeof(Handle) + data.size);
    handle->collector = collector;
    handle->armed = 1;
    handle->size = data.size;
    memcpy(handle->data, data.data, data.size);
    ERL_NIF_TERM term = enif_make_resource(env, handle);
    enif_release_resource(handle);
    return term;
}

static ERL_NIF_TERM disarm(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
    void *object;
    (void)argc;
    if (!enif_get_resource(env, argv[0], handle_type, &object))
        return enif_make_badarg(env);
    ((Handle *)object)->armed = 0;
    return enif_make_atom(env, "ok");
}

/* --- shared memory ------------------------------------------------------------------------------ */

static ErlNifResourceType *region_type, *view_type;

static ERL_NIF_TERM failed(ErlNifEnv *env, const char *why)
{
    return enif_make_tuple2(env, enif_make_atom(env, "error"), enif_make_atom(env, why));
}

#ifdef __linux__

#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_GET_SEALS 1034
#define F_SEAL_SEAL 1
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#endif

#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)
#define MEMFD_FLAGS 3 /* MFD_CLOEXEC | MFD_ALLOW_SEALING */

#define HEADER 4096
#define MAGIC "snexshm1"
#define MAGIC_SIZE 8
#define ID_SIZE 16
#define HEAD_SIZE (MAGIC_SIZE + ID_SIZE + 8)

typedef struct {
    ErlNifMutex *lock;
    int file;
    size_t filled; /* bytes that have their memory */
    size_t mapped;
    unsigned char *map;
} Region;

typedef struct {
    ErlNifPid collector;
    int armed;
    size_t mapped;
    unsigned char *map;
    size_t size;
    unsigned char data[];
} View;

static void write_head(unsigned char *head, const unsigned char *id, uint64_t size)
{
    memcpy(head, MAGIC, MAGIC_SIZE);
    memcpy(head + MAGIC_SIZE, id, ID_SIZE);
    for (int i = 0; i < 8; i++)
        head[MAGIC_SIZE + ID_SIZE + i] = (unsigned char)(size >> (8 * i));
}

static void shut(Region *region)
{
    if (region->map != NULL)
        munmap(region->map, region->mapped);
    if (region->file >= 0)
        close(region->file);
    region->map = NULL;
    region->file = -1;
}

static void region_gone(ErlNifEnv *env, void *object)
{
    Region *region = object;
    (void)env;
    shut(region);
    if (region->lock != NULL)
        enif_mutex_destroy(region->lock);
}

static ERL_NIF_TERM region_new(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
    ErlNifUInt64 capacity;
    (void)argc;
    if (!enif_get_uint64(env, argv[0], &capacity) || capacity > INT64_MAX)
        return enif_make_badarg(env);
    Region *region = enif_alloc_resource(region_type, sizeof(Region));
    memset(region, 0, sizeof(Region));
    region->lock = enif_mutex_create("snex_region");
    region->file = (int)syscall(SYS_memfd_create, "snex", MEMFD_FLAGS);
    int made = region->lock != NULL && region->file >= 0 &&
               ftruncate(region->file, (off_t)capacity) == 0 &&
               fcntl(region->file, F_ADD_SEALS, SEALS) == 0;
    ERL_NIF_TERM term = enif_make_resource(env, region);
    int file = region->file;
    enif_release_resource(region); /* what was not made goes with the term */
    if (!made)
        return failed(env, "no_memory");
    return enif_make_tuple3(env, enif_make_atom(env, "ok"), term, enif_make_int(env, file));
}

static int write_all(int file, const unsigned char *data, size_t size, off_t at)
{
    while (size > 0) {
        ssize_t written = pwrite(file, data, size, at);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return 0;
        data += written;
        size -= (size_t)written;
        at += written;
    }
    return 1;
}

/* Where there are pages already it takes half the time to write to them as they are mapped. */
static int fill(Region *region, const unsigned char *head, ErlNifBinary *data)
{
    size_t end = HEADER + data->size;
    if (region->filled >= end && region->mapped < end) {
        if (region->map != NULL)
            munmap(region->map, region->mapped);
        region->map = mmap(NULL, region->filled, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_POPULATE, region->file, 0);
        region->mapped = region->map == MAP_FAILED ? 0 : region->filled;
        if (region->map == MAP_FAILED)
            region->map = NULL;
    }
    if (region->mapped >= end) {
        memcpy(region->map, head, HEAD_SIZE);
        memcpy(region->map + HEADER, data->data, data->size);
        return 1;
    }
    if (!write_all(region->file, head, HEAD_SIZE, 0) ||
        !write_all(region->file, data->data, data->size, HEADER))
        return 0;
    if (region->filled < end)
        region->filled = end;
    return 1;
}

static ERL_NIF_TERM region_write(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
    void *object;
    ErlNifBinary id, data;
    unsigned char head[HEAD_SIZE];
    (void)argc;
    if (!enif_get_resource(env, argv[0], region_type, &object) ||
        !enif_inspect_binary(env, argv[1], &id) || id.size != ID_SIZE ||
        !enif_inspect_binary(env, argv[2], &data))
        return enif_make_badarg(env);
    Region *region = object;
    write_head(head, id.data, data.size);
    enif_mutex_lock(region->lock);
    int done = region->file >= 0 && fill(region, head, &data);
    enif_mutex_unlock(region->lock);
    return done ? enif_make_atom(env, "ok") : failed(env, "no_memory");
}

static ERL_NIF_TERM region_close(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
    void *object;
    (void)argc;
    if (!enif_get_resource(env, argv[0], region_type, &object))
        return enif_make_badarg(env);
    Region *region = object;
    enif_mutex_lock(region->lock);
    shut(region);
    enif_mutex_unlock(region->lock);
    return enif_make_atom(env, "ok");
}

static void view_gone(ErlNifEnv *env, void *object)
{
    View *view = object;
    if (view->map != NULL)
        munmap(view->map, view->mapped);
    if (view->armed)
        tell(env, "snex_view_dropped", &view->collector, view->data, view->size);
}

/* To open a file for its place alone does nothing to it, whatever it is. */
static int open_regular(int process, int file)
{
    char path[64];
    struct stat status;
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", process, file);
    int place = open(path, O_PATH | O_CLOEXEC);
    if (place < 0)
        return -1;
    int opened = -1;
    if (fstat(place, &status) == 0 && S_ISREG(status.st_mode)) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", place);
        opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    }
    close(place);
    return opened;
}

static const char *map_view(View *view, int file, const unsigned char *id, size_t size)
{
    struct stat status;
    unsigned char head[HEAD_SIZE];
    int seals = fcntl(file, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS || fstat(file, &status) != 0)
        return "no_region";
    if (status.st_size < HEADER || size > (size_t)status.st_size - HEADER)
        return "too_short";
    unsigned char *map = mmap(NULL, HEADER + size, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED)
        return "no_memory";
    view->map = map;
    view->mapped = HEADER + size;
    write_head(head, id, size);
    return memcmp(map, head, HEAD_SIZE) == 0 ? NULL : "stale";
}

static ERL_NIF_TERM view_open(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
    int process, file;
    ErlNifBinary id, data;
    ErlNifUInt64 size;
    ErlNifPid collector;
    (void)argc;
    if (!enif_get_int(env, argv[0], &process) || process <= 0 ||
        !enif_get_int(env, argv[1], &file) || file < 0 ||
        !enif_inspect_binary(env, argv[2], &id) || id.size != ID_SIZE ||
        !enif_get_uint64(env, argv[3], &size) || !enif_get_local_pid(env, argv[4], &collector) ||
        !enif_inspect_binary(env, argv[5], &data))
        return enif_make_badarg(env);
    int opened = open_regular(process, file);
    if (opened < 0)
        return failed(env, "cannot_open");
    View *view = enif_alloc_resource(view_type, sizeof(View) + data.size);
    memset(view, 0, sizeof(View));
    view->collector = collector;
    view->size = data.size;
    memcpy(view->data, data.data, data.size);
    const char *why = map_view(view, opened, id.data, size);
    close(opened);
    view->armed = why == NULL;
    ERL_NIF_TERM result =
        why != NULL ? failed(env, why)
                    : enif_make_tuple2(env, enif_make_atom(env, "ok"),
                                       enif_make_resource_binary(env, view, view->map + HEADER, size));
    enif_release_resource(view);
    return result;
}

#else

static void region_gone(ErlNifEnv *env, void *object)
{
    (void)env;
    (void)object;
}

#define view_gone region_gone

static ERL_NIF_TERM unsupported(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
{
    (void)argc;
    (void)argv;
    return failed(env, "unsupported");
}

#define region_new unsupported
#define region_write unsupported
#define region_close unsupported
#define view_open unsupported

#endif

/* --- the library -------------------------------------------------------------------------------- */

static int open_types(ErlNifEnv *env)
{
    int flags = ERL_NIF_RT_CREATE | ERL_NIF_RT_TAKEOVER;
    handle_type = enif_open_resource_type(env, NULL, "snex_env", dropped, flags, NULL);
    region_type = enif_open_resource_type(env, NULL, "snex_region", region_gone, flags, NULL);
    view_type = enif_open_resource_type(env, NULL, "snex_view", view_gone, flags, NULL);
    return handle_type == NULL || region_type == NULL || view_type == NULL;
}

static int load(ErlNifEnv *env, void **private, ERL_NIF_TERM info)
{
    (void)private;
    (void)info;
    return open_types(env);
}

static int upgrade(ErlNifEnv *env, void **private, void **old, ERL_NIF_TERM info)
{
    (void)private;
    (void)old;
    (void)info;
    return open_types(env);
}

static ErlNifFunc functions[] = {
    {"make", 2, make, 0},
    {"disarm", 1, disarm, 0},
    {"region_new", 1, region_new, 0},
    {"region_write", 3, region_write, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"region_close", 1, region_close, ERL_NIF_DIRTY_JOB_CPU_BOUND},
    {"view_open", 6, view_open, ERL_NIF_DIRTY_JOB_IO_BOUND},
};

ERL_NIF_INIT(Elixir.Snex.Nif, functions, load, NULL, upgrade, NULL)
