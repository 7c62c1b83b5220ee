/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* dlsym, as everybody else calls it.
 *
 * RTLD_NEXT and RTLD_DEFAULT depend on who calls dlsym, and the real one
 * finds that out from its return address.  So it must be entered by a
 * jump, with the caller's arguments, return address and stack.  C has no
 * such jump: a compiler makes one from a call in tail position only with
 * some flags, on some processors.
 *
 * Each of these calls dlsym_target with the arguments, and jumps to what
 * that returns with everything as it was.
 */

#ifdef __CET__
#include <cet.h>
#endif

	.text
	.globl	dlsym
	.type	dlsym, %function
	.hidden	dlsym_target
	.balign	16
dlsym:

#if defined (__x86_64__)
	endbr64
	push	%rdi
	push	%rsi
	sub	$8, %rsp		/* a call needs it at 16 bytes */
	call	dlsym_target
	add	$8, %rsp
	pop	%rsi
	pop	%rdi
	jmp	*%rax

#elif defined (__i386__)
	sub	$4, %esp		/* a call needs it at 16 bytes */
	push	12(%esp)		/* name */
	push	12(%esp)		/* handle: the push has moved it */
	call	dlsym_target
	add	$12, %esp
	jmp	*%eax

#elif defined (__aarch64__)
	hint	#34			/* bti c */
	stp	x29, x30, [sp, #-32]!
	mov	x29, sp
	stp	x0, x1, [sp, #16]
	bl	dlsym_target
	mov	x16, x0
	ldp	x0, x1, [sp, #16]
	ldp	x29, x30, [sp], #32
	br	x16

#elif defined (__arm__)
	push	{r0, r1, r2, lr}	/* r2 for the alignment */
	bl	dlsym_target
	mov	ip, r0
	pop	{r0, r1, r2, lr}
	bx	ip

#elif defined (__s390x__)
	/* The caller's frame has room to save these. */
	stg	%r2, 16(%r15)
	stg	%r3, 24(%r15)
	stg	%r14, 112(%r15)
	aghi	%r15, -160
	brasl	%r14, dlsym_target
	lgr	%r1, %r2
	aghi	%r15, 160
	lg	%r2, 16(%r15)
	lg	%r3, 24(%r15)
	lg	%r14, 112(%r15)
	br	%r1

#elif defined (__powerpc64__) && _CALL_ELF == 2
	/* The real one sets r2 for itself, and the caller restores its own. */
	addis	2, 12, .TOC.-dlsym@ha
	addi	2, 2, .TOC.-dlsym@l
	.localentry dlsym, .-dlsym
	mflr	0
	std	0, 16(1)
	stdu	1, -48(1)
	std	3, 32(1)
	std	4, 40(1)
	bl	dlsym_target
	nop
	mr	12, 3
	mtctr	3
	ld	3, 32(1)
	ld	4, 40(1)
	addi	1, 1, 48
	ld	0, 16(1)
	mtlr	0
	bctr

#elif defined (__riscv) && __riscv_xlen == 64
	addi	sp, sp, -32
	sd	ra, 16(sp)
	sd	a0, 0(sp)
	sd	a1, 8(sp)
	call	dlsym_target
	mv	t1, a0
	ld	a0, 0(sp)
	ld	a1, 8(sp)
	ld	ra, 16(sp)
	addi	sp, sp, 32
	jr	t1

#elif defined (__mips__) && _MIPS_SIM == _ABI64
	.set	noreorder		/* what follows a jump is done first */
	daddiu	$29, $29, -32
	.cpsetup $25, 24, dlsym
	sd	$31, 16($29)
	sd	$4, 0($29)
	sd	$5, 8($29)
	dla	$25, dlsym_target
	jalr	$25
	nop
	move	$25, $2
	ld	$4, 0($29)
	ld	$5, 8($29)
	ld	$31, 16($29)
	.cpreturn
	jr	$25
	daddiu	$29, $29, 32

#else
#error "interpose/entry.S: this processor needs a dozen lines here first"
#endif

	.size	dlsym, .-dlsym

	.section .note.GNU-stack, "", %progbits

#ifdef __ARM_FEATURE_BTI_DEFAULT
	/* As the compiler does: this file has branch protection too. */
	.section .note.gnu.property, "a"
	.balign	8
	.long	4, 16, 5
	.asciz	"GNU"
	.long	0xc0000000, 4, 3, 0
#endif
