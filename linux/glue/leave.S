/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Behind a guest on processors that predict returns by what has run before (Retbleed, SRSO): what the kernel does at its own doors. */
#include <linux/linkage.h>
#include <asm/alternative.h>
#include <asm/cpufeatures.h>
#include <asm/nospec-branch.h>

/* Called before the first return. Clobbers RAX, RCX and RDX. */
SYM_FUNC_START(rekvm_untrain_returns)
	UNTRAIN_RET
#ifdef X86_FEATURE_IBPB_ON_VMEXIT
	ALTERNATIVE "", "call entry_ibpb", X86_FEATURE_IBPB_ON_VMEXIT
#endif
	RET
SYM_FUNC_END(rekvm_untrain_returns)
