/*
 * Kernel constants that Debian 12's headers lack (they are of Linux 6.1). Features are probed at run time, never by #ifdef of
 * a kernel version. Source: include/uapi/linux/userfaultfd.h of Linux 6.6.
 */
#ifndef FM_UAPI_H
#define FM_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00) /* Linux 6.1: on /dev/userfaultfd */
#endif

#ifndef UFFDIO_POISON /* Linux 6.6 */
#define UFFD_FEATURE_POISON (1 << 14)
#define _UFFDIO_POISON      (0x08)
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif

#endif
