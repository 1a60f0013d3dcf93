import manifest from '../package.json' with { type: 'json' };

/** The version of this program: one number for appliance and agent. */
export const VERSION: string = manifest.version;
