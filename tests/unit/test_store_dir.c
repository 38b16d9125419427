/* Unit tests of lib/store and the dir: store, on a directory and on a tmpfs of a few pages. */
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tap.h"

#define PAGE 4096u
#define ID   0xfeedull

static char dir[] = "/tmp/fm-store.XXXXXX";
static char uri[64], why[FM_STORE_WHY];
static _Alignas(4096) unsigned char out[256][PAGE], in[256][PAGE];

static void fill(unsigned i, uint64_t tag)
{
	for (unsigned k = 0; k < PAGE; k += 8) {
		uint64_t v = tag * 1000003 + k + 1;

		memcpy(out[i] + k, &v, 8);
	}
}

/* Requests for pages first, first + step, ...; buffers of out (put) or in (get). */
static struct fm_store_req *requests(uint64_t first, uint64_t step, unsigned n, bool get)
{
	static struct fm_store_req r[256];

	for (unsigned i = 0; i < n; i++)
		r[i] = (struct fm_store_req){
		    .page = first + i * step, .gen = 1, .buf = get ? in[i] : out[i], .result = (enum fm_store_result)99};
	return r;
}

static unsigned count(const struct fm_store_req *r, unsigned n, enum fm_store_result want)
{
	unsigned k = 0;

	for (unsigned i = 0; i < n; i++)
		k += r[i].result == want;
	return k;
}

static bool put_pages(struct fm_store *s, uint64_t id, uint64_t first, uint64_t step, unsigned n, uint64_t tag)
{
	struct fm_store_req *r;

	for (unsigned i = 0; i < n; i++)
		fill(i, tag + i);
	r = requests(first, step, n, false);
	fm_store_put(s, id, r, n);
	return count(r, n, FM_STORE_OK) == n;
}

static bool get_pages(struct fm_store *s, uint64_t id, uint64_t first, uint64_t step, unsigned n, uint64_t tag)
{
	struct fm_store_req *r;

	memset(in, 0xee, sizeof in);
	r = requests(first, step, n, true);
	fm_store_get(s, id, r, n);
	if (count(r, n, FM_STORE_OK) != n)
		return false;
	for (unsigned i = 0; i < n; i++) {
		fill(0, tag + i);
		if (memcmp(in[i], out[0], PAGE) != 0)
			return false;
	}
	return true;
}

static int files(void)
{
	struct dirent *e;
	DIR *d = opendir(dir);
	int n = 0;

	while (d && (e = readdir(d)))
		n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
	if (d)
		closedir(d);
	return n;
}

static void test_uris(void)
{
	struct fm_store *s = NULL;
	char path[128], long_uri[600];

	is_u64(fm_store_check("dir:/var/lib/fm", NULL, why), 0, "a good URI");
	is_u64(fm_store_check("dir:relative", NULL, why), -EINVAL, "a relative directory");
	ok(strstr(why, "dir:relative") && strchr(why, '\n') == NULL, "... is named in one line");
	is_u64(fm_store_check("dir:", NULL, why), -EINVAL, "no directory");
	is_u64(fm_store_check("", NULL, why), -EINVAL, "nothing");
	is_u64(fm_store_check("nosuch:/x", NULL, why), -EINVAL, "an unknown scheme");
	ok(strstr(why, "nosuch:/x") && strstr(why, "dir:"), "... is named, and what is known");
	memset(long_uri, 'x', sizeof long_uri - 1);
	long_uri[sizeof long_uri - 1] = '\0';
	is_u64(fm_store_check(long_uri, NULL, why), -EINVAL, "a long one does not run over");
	memcpy(long_uri, "dir:y", 5);
	is_u64(fm_store_check(long_uri, NULL, why), -EINVAL, "a long relative one");

	is_u64(fm_store_open("dir:/nonexistent/a/b", NULL, &s, why), -ENOENT, "a directory whose parent is missing");
	ok(strstr(why, "/nonexistent/a/b") != NULL, "... is named");
	snprintf(path, sizeof path, "dir:%s/file", dir);
	close(open(path + 4, O_CREAT | O_WRONLY, 0600));
	is_u64(fm_store_open(path, NULL, &s, why), -ENOTDIR, "a file in its place");
	unlink(path + 4);
	snprintf(path, sizeof path, "dir:%s/new", dir);
	is_u64(fm_store_open(path, NULL, &s, why), 0, "a missing directory is made");
	fm_store_close(s);
	ok(rmdir(path + 4) == 0, "... and left empty");
	fm_store_close(NULL);
}

static void test_pages(void)
{
	struct fm_store *s = NULL, *t = NULL;
	struct fm_store_req *r;
	uint64_t used = 1, used2, limit;

	is_u64(fm_store_open(uri, NULL, &s, why), 0, "open");
	is_u64(fm_store_open(uri, NULL, &t, why), 0, "open a second handle");
	ok(fm_store_usage(s, &used, &limit) == 0 && used == 0 && limit > 0, "an empty store uses nothing");
	ok(put_pages(s, ID, 7, 1, 1, 100) && get_pages(t, ID, 7, 1, 1, 100), "one page, put by one, got by the other");
	ok(put_pages(s, ID, 1000, 1, 128, 200) && get_pages(t, ID, 1000, 1, 128, 200), "a run of 128");
	ok(put_pages(s, ID, 2000, 1, 200, 300) && get_pages(t, ID, 2000, 1, 200, 300), "a run longer than one call takes");
	ok(put_pages(s, ID, 5000, 3, 128, 500) && get_pages(t, ID, 5000, 3, 128, 500), "128 scattered ones");
	ok(put_pages(s, ID, 0xfffffffdull, 1, 1, 900) && get_pages(t, ID, 0xfffffffdull, 1, 1, 900), "the last page of the largest region");
	ok(put_pages(s, ID + 1, 7, 1, 1, 101) && get_pages(t, ID + 1, 7, 1, 1, 101) && get_pages(t, ID, 7, 1, 1, 100),
	   "the same page of another region is another page");
	ok(put_pages(s, ID, 7, 1, 1, 102) && get_pages(t, ID, 7, 1, 1, 102), "put again: the newest");
	ok(get_pages(t, ID, 1000, 1, 128, 200), "its neighbours are what they were");
	fm_store_usage(s, &used, &limit);
	ok(used >= 459 * PAGE && used < 600 * PAGE, "usage counts blocks, not file lengths (%llu)", (unsigned long long)used);

	r = requests(1010, 1, 20, false);
	fm_store_delete(s, ID, r, 20);
	is_u64(count(r, 20, FM_STORE_OK), 20, "delete a run");
	r = requests(5003, 3, 10, false);
	fm_store_delete(s, ID, r, 10);
	is_u64(count(r, 10, FM_STORE_OK), 10, "delete scattered ones");
	fm_store_usage(s, &used2, &limit);
	ok(used2 + 25 * PAGE <= used, "deleting frees blocks");
	ok(get_pages(t, ID, 1000, 1, 10, 200) && get_pages(t, ID, 1030, 1, 98, 230), "the pages around are what they were");
	r = requests(1005, 1, 30, true);
	fm_store_get(t, ID, r, 30);
	ok(count(r, 30, FM_STORE_LOST) == 20 && count(r, 30, FM_STORE_OK) == 10, "deleted ones are LOST, never zeros");
	r = requests(1010, 1, 20, false);
	fm_store_delete(s, ID, r, 20);
	is_u64(count(r, 20, FM_STORE_OK), 20, "deleting what is not there is no error");

	r = requests(1u << 30, 1, 3, true);
	fm_store_get(t, ID, r, 3);
	is_u64(count(r, 3, FM_STORE_LOST), 3, "never put, in a hole: LOST");
	r = requests(3, 1, 2, true);
	fm_store_get(t, 0xabcdef, r, 2);
	is_u64(count(r, 2, FM_STORE_LOST), 2, "of a region that has nothing: LOST");
	fm_store_forget(t, 0xabcdef);
	is_u64(fm_store_region_end(s, 0xabcdef), 0, "end that one");

	fm_store_forget(t, ID);
	ok(get_pages(t, ID, 1000, 1, 10, 200), "forgetting a region only closes it");
	fm_store_forget(t, ID);
	is_u64(fm_store_region_end(s, ID), 0, "end of a region");
	is_u64(fm_store_region_end(s, ID), 0, "... again");
	is_u64(files(), 1, "... its file is gone, the other's is not");
	ok(get_pages(t, ID + 1, 7, 1, 1, 101), "the other region still has its page");
	fm_store_forget(t, ID + 1);
	fm_store_region_end(s, ID + 1);
	is_u64(files(), 0, "nothing is left");
	fm_store_close(s);
	fm_store_close(t);
}

static void test_damage(void)
{
	struct fm_store *s = NULL;
	struct fm_store_req *r;
	char path[128];

	fm_store_open(uri, NULL, &s, why);
	put_pages(s, ID, 0, 1, 64, 700);
	snprintf(path, sizeof path, "%s/%016llx.pages", dir, (unsigned long long)ID);
	ok(truncate(path, 10 * PAGE) == 0, "a file cut short");
	r = requests(0, 1, 64, true);
	fm_store_get(s, ID, r, 64);
	ok(count(r, 64, FM_STORE_OK) == 10 && count(r, 64, FM_STORE_LOST) == 54, "what is cut off is LOST, the rest is there");
	ok(truncate(path, 10 * PAGE - 100) == 0, "cut in the middle of a page");
	r = requests(5, 1, 10, true);
	fm_store_get(s, ID, r, 10);
	ok(count(r, 10, FM_STORE_OK) == 4 && count(r, 10, FM_STORE_LOST) == 6, "half a page is LOST");
	ok(put_pages(s, ID, 20, 1, 4, 800), "put beyond it");
	r = requests(8, 1, 14, true);
	fm_store_get(s, ID, r, 14);
	ok(r[0].result == FM_STORE_OK && count(r, 14, FM_STORE_LOST) == 10, "the hole between is LOST");
	/* Page 9 lost its last bytes: they read as zeros now, which this store has no checksum to see. It says so in its header. */
	ok(r[12].result == FM_STORE_OK && r[13].result == FM_STORE_OK && memcmp(in[13], out[1], PAGE) == 0, "pages behind the hole are right");
	unlink(path);
	fm_store_forget(s, ID);
	r = requests(0, 1, 2, true);
	fm_store_get(s, ID, r, 2);
	is_u64(count(r, 2, FM_STORE_LOST), 2, "a file that was removed: LOST");
	fm_store_region_end(s, ID);
	fm_store_close(s);
}

/* A store of 64 pages that fills up, and one that is read-only: needs root for its mounts, made where nobody else sees them. */
static void test_full(void)
{
	struct fm_store *s = NULL;
	struct fm_store_req *r;
	uint64_t used, limit;
	unsigned stored;

	if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("fm-test", dir, "tmpfs", 0, "size=256k") < 0) {
		tap_skip("a full store", "cannot mount a tmpfs here (needs root)");
		return;
	}
	is_u64(fm_store_open(uri, NULL, &s, why), 0, "a store on a tmpfs of 64 pages");
	for (unsigned i = 0; i < 128; i++)
		fill(i, 40 + i);
	r = requests(100, 1, 128, false);
	fm_store_put(s, ID, r, 128);
	stored = count(r, 128, FM_STORE_OK);
	ok(stored >= 1 && stored <= 64 && count(r, 128, FM_STORE_FULL) == 128 - stored, "128 pages: %u OK, the rest FULL", stored);
	ok(get_pages(s, ID, 100, 1, stored, 40), "those that were OK are there");
	r = requests(1000, 2, 20, false);
	fm_store_put(s, ID, r, 20);
	is_u64(count(r, 20, FM_STORE_FULL), 20, "scattered ones: FULL");
	ok(get_pages(s, ID, 100, 1, stored, 40), "nothing of what was stored has suffered");
	ok(put_pages(s, ID, 100, 1, stored, 60), "a page that has its place can be put again");
	ok(fm_store_usage(s, &used, &limit) == 0 && used == stored * PAGE && limit == used, "usage: full (%llu of %llu)",
	   (unsigned long long)used, (unsigned long long)limit);
	r = requests(100, 1, 10, false);
	fm_store_delete(s, ID, r, 10);
	is_u64(count(r, 10, FM_STORE_OK), 10, "delete works on a full store");
	ok(put_pages(s, ID, 1000, 2, 10, 90) && get_pages(s, ID, 1000, 2, 10, 90), "and makes room again");
	fm_store_region_end(s, ID);
	ok(put_pages(s, ID, 0, 1, 32, 90), "the end of a region makes room, too");
	fm_store_region_end(s, ID);
	fm_store_close(s);

	ok(mount(NULL, dir, NULL, MS_REMOUNT | MS_RDONLY, "size=256k") == 0, "the same, read-only");
	is_u64(fm_store_open(uri, NULL, &s, why), -EROFS, "is refused");
	ok(strstr(why, dir) && strstr(why, "not writable"), "... with its name and the reason");
	umount(dir);
}

/* A disk that cannot read: /proc/self/mem at an address where nothing is. Asked again for seconds, and only then given up. */
static void test_io_error(void)
{
	struct fm_store_req r = {.page = 0, .gen = 1, .buf = in[0]};
	struct timespec nap = {.tv_nsec = 20000000};
	unsigned tries = 0;
	struct fm_store *s;
	char path[96];

	if (!is_u64(fm_store_open(uri, NULL, &s, why), 0, "store of a bad disk is opened"))
		return;
	put_pages(s, ID, 0, 1, 1, 5);
	fm_store_forget(s, ID);
	snprintf(path, sizeof path, "%s/%016llx.pages", dir, (unsigned long long)ID);
	if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("/proc/self/mem", path, NULL, MS_BIND, NULL) < 0) {
		tap_skip("an I/O error", "cannot mount here");
		fm_store_region_end(s, ID);
		fm_store_close(s);
		return;
	}
	/* Its folder was opened in the namespace before. */
	fm_store_close(s);
	if (!is_u64(fm_store_open(uri, NULL, &s, why), 0, "... and again"))
		return;
	for (;; tries++) {
		fm_store_get(s, ID, &r, 1);
		if (r.result != FM_STORE_DOWN || tries > 3000)
			break;
		nanosleep(&nap, NULL);
	}
	is_u64(r.result, FM_STORE_LOST, "a page that cannot be read is lost in the end");
	ok(tries > 20, "... but not before it was asked for many times (%u)", tries);
	fm_store_get(s, ID, &r, 1);
	is_u64(r.result, FM_STORE_DOWN, "a new access begins anew");
	fm_store_forget(s, ID);
	umount2(path, MNT_DETACH);
	fm_store_get(s, ID, &r, 1);
	is_u64(r.result, FM_STORE_OK, "and the page is there when the disk is");
	fm_store_region_end(s, ID);
	fm_store_close(s);
}

int main(void)
{
	if (!mkdtemp(dir))
		return 1;
	snprintf(uri, sizeof uri, "dir:%s", dir);
	test_uris();
	test_pages();
	test_damage();
	test_full();
	test_io_error();
	rmdir(dir);
	return tap_done();
}
